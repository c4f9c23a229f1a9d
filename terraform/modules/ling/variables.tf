variable "namespace" {
  description = "Namespace of the cluster; made here."
  type        = string
  default     = "ling"
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace: give a DNS label: at most 63 of a-z, 0-9 and -, neither beginning nor ending with -."
  }
}

variable "deploy" {
  description = "Whether the chart is installed. false makes all the rest: the volume to copy the checkpoint to, the namespace for Secrets of yours."
  type        = bool
  default     = true
}

variable "image" {
  description = "The cluster's image, which the nodes can pull. tag: the chart's version if not given."
  type = object({
    repository = string
    tag        = optional(string, "")
  })
  validation {
    condition     = can(regex("^[^\\s:@]+(:[0-9]+/[^\\s:@]+)?$", var.image.repository))
    error_message = "image.repository: give a name without tag or digest, and the tag as image.tag."
  }
}

variable "model" {
  description = "One of path: the checkpoint's folder in the volume; repository: of a hub, ORGANIZATION/NAME or with @REVISION; prefix: s3://, gs:// or https://. The last two are fetched into the volume, once for all nodes. secret: name of a Secret in the namespace whose keys become variables of the pods that fetch, HF_TOKEN say. env: those that are no secret, AWS_REGION say. service_account: account of these pods, made here with annotations, for a role that reads the bucket. served_name: what clients call it, the last part of the name if not given. format: of the weights: bf16, fp8, fp8-channel, int4, awq or other. shard: whether each rank's weights are laid together once before the first start, of a path."
  type = object({
    path       = optional(string, "")
    repository = optional(string, "")
    prefix     = optional(string, "")
    secret     = optional(string, "")
    env        = optional(map(string), {})
    service_account = optional(object({
      name        = string
      annotations = optional(map(string), {})
    }))
    served_name = optional(string, "")
    format      = optional(string, "fp8")
    shard       = optional(bool, false)
  })
  validation {
    condition     = length(compact([var.model.path, var.model.repository, var.model.prefix])) == 1
    error_message = "model: give exactly one of path, repository and prefix."
  }
  validation {
    condition     = can(regex("^([A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)?$", var.model.path))
    error_message = "model.path: give a folder of the volume, relative to its root."
  }
  validation {
    condition     = contains(["bf16", "fp8", "fp8-channel", "int4", "awq", "other"], var.model.format)
    error_message = "model.format: give bf16, fp8, fp8-channel, int4, awq or other."
  }
}

variable "model_storage" {
  description = "Where the volume with the checkpoint comes from, for many nodes at once: a provisioner with its parameters and mount options, and the size asked for."
  type = object({
    provisioner   = string
    parameters    = map(string)
    mount_options = optional(list(string), [])
    size          = string
  })
  validation {
    condition     = can(regex("^[0-9]+(Gi|Ti)$", var.model_storage.size))
    error_message = "model_storage.size: give Gi or Ti, 300Gi say."
  }
}

variable "disk_storage" {
  description = "Where a disk of one node comes from: a provisioner with its parameters."
  type = object({
    provisioner = string
    parameters  = map(string)
  })
}

variable "gpu" {
  description = "type: a card as the chart calls it, h100-80gb say, or other, which skips the check of memory. node_selector: labels of the nodes with it."
  type = object({
    type          = string
    node_selector = optional(map(string), {})
  })
}

variable "prefill" {
  description = "Workers that compute prompts. replicas: how many; 0: decode workers do it. max_replicas: up to where the pool grows by load; it does not without. tp: GPUs of a worker. node_pool: GPU pool whose nodes they keep to; any if not given."
  type = object({
    replicas     = optional(number, 1)
    max_replicas = optional(number)
    tp           = optional(number, 4)
    node_pool    = optional(string)
  })
  default = {}
  validation {
    condition     = var.prefill.replicas >= 0 && floor(var.prefill.replicas) == var.prefill.replicas
    error_message = "prefill.replicas: give a whole number from 0 on."
  }
  validation {
    condition     = contains([1, 2, 4], var.prefill.tp)
    error_message = "prefill.tp: give 1, 2 or 4: what divides the model's heads, group norms and experts."
  }
  validation {
    condition     = var.prefill.max_replicas == null ? true : var.prefill.replicas >= 1 && var.prefill.max_replicas >= var.prefill.replicas
    error_message = "prefill.max_replicas: a pool that grows begins with at least 1 worker and at most max_replicas."
  }
}

variable "decode" {
  description = "Workers that generate; otherwise as prefill."
  type = object({
    replicas     = optional(number, 1)
    max_replicas = optional(number)
    tp           = optional(number, 4)
    node_pool    = optional(string)
  })
  default = {}
  validation {
    condition     = var.decode.replicas >= 1 && floor(var.decode.replicas) == var.decode.replicas
    error_message = "decode.replicas: give a whole number from 1 on."
  }
  validation {
    condition     = contains([1, 2, 4], var.decode.tp)
    error_message = "decode.tp: give 1, 2 or 4: what divides the model's heads, group norms and experts."
  }
  validation {
    condition     = !var.model.shard || var.prefill.replicas == 0 || var.prefill.tp == var.decode.tp
    error_message = "decode.tp: differs from prefill.tp, and model.shard lays the weights out for one of them; give both pools the same tp, or turn model.shard off."
  }
  validation {
    condition     = var.decode.max_replicas == null ? true : var.decode.max_replicas >= var.decode.replicas
    error_message = "decode.max_replicas: a pool that grows begins with at most max_replicas workers."
  }
}

variable "routers" {
  description = "How many routers, each a pod."
  type        = number
  default     = 2
  validation {
    condition     = var.routers >= 1 && floor(var.routers) == var.routers
    error_message = "routers: give a whole number from 1 on."
  }
}

variable "values" {
  description = "More of the chart's values (helm/values.yaml), which win over what this module sets: config, ingress, service, networkPolicy.clients and so on."
  type        = any
  default     = {}
}

variable "ray_token_secret" {
  description = "Name of a Secret in the namespace whose auth_token is Ray's token. One is made if not given."
  type        = string
  default     = null
}

variable "api_keys_secret" {
  description = "Name of a Secret in the namespace whose keys is the file of API keys' hashes (python -m router.access.keys). One with a single key is made if not given; the key itself stands beside it as key."
  type        = string
  default     = null
}

variable "secrets_revision" {
  description = "Raise it to have the Secrets that are made here made anew: Ray's token, the API key, Grafana's password."
  type        = number
  default     = 1
  validation {
    condition     = var.secrets_revision >= 1 && floor(var.secrets_revision) == var.secrets_revision
    error_message = "secrets_revision: give a whole number from 1 on."
  }
}

variable "monitoring" {
  description = "Prometheus and Grafana. retention: how long figures are kept. size: of the disk for them."
  type = object({
    enabled   = optional(bool, true)
    retention = optional(string, "15d")
    size      = optional(string, "100Gi")
  })
  default = {}
  validation {
    condition     = can(regex("^[0-9]+(h|d|w|y)$", var.monitoring.retention)) && can(regex("^[0-9]+(Gi|Ti)$", var.monitoring.size))
    error_message = "monitoring: give retention as 15d, size as 100Gi."
  }
}

variable "node_charts" {
  description = "Charts that the cloud's nodes need, device plugins say: where from, which, into what namespace, and values as YAML."
  type = map(object({
    repository = string
    chart      = string
    version    = string
    namespace  = string
    values     = string
  }))
  default = {}
}
