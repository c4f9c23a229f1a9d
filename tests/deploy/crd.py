"""KubeRay's schema of a RayService, as its releases have it.

`crds/rayservice-VERSION.json.gz` is `spec.versions[v1].schema.openAPIV3Schema` of
helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml at the tag vVERSION of github.com/ray-project/kuberay
(Apache-2.0), without descriptions.
"""

import gzip
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "crds"


def schema_of(version: str) -> Any:
    """The schema of a release."""
    return json.loads(gzip.decompress((FOLDER / f"rayservice-{version}.json.gz").read_bytes()))


def strict(schema: Any) -> Any:
    """A schema that refuses fields it does not know, where Kubernetes drops them; quantities may be numbers."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {k: {n: strict(v) for n, v in x.items()} if k == "properties" else strict(x) for k, x in schema.items()}
    if made.get("properties") and "additionalProperties" not in made:
        made["additionalProperties"] = bool(made.get("x-kubernetes-preserve-unknown-fields"))
    return made
