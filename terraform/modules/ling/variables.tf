variable "namespace" {
  description = "Namespace of the cluster. The module creates it."
  type        = string
  default     = "ling"
  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace: give a DNS label: at most 63 of a-z, 0-9 and -, neither beginning nor ending with -."
  }
}

variable "deploy" {
  description = "Whether to install the chart. With false the module creates everything else, so that you can copy a checkpoint to the volume or create your own Secrets in the namespace first."
  type        = bool
  default     = true
}

variable "image" {
  description = "The cluster's image, which the nodes must be able to pull. tag: the chart's version by default."
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
  description = "The checkpoint. Give exactly one of path: its folder in the volume; repository: a hub's repository, as ORGANIZATION/NAME, optionally with @REVISION; prefix: an address with s3://, gs:// or https://. A repository or a prefix is fetched into the volume once for all nodes. secret: name of a Secret in the namespace whose keys become environment variables of the pods that fetch, for example HF_TOKEN. env: further environment variables of these pods, for example AWS_REGION. service_account: service account of these pods, which the module creates with these annotations, for a role that reads the bucket. served_name: the model's name for clients; by default the last part of its name. format: the weights' format: bf16, fp8, fp8-channel, int4, awq or other. shard: whether to store each rank's weights together once before the first start; only with path."
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
  description = "Storage class of the volume with the checkpoint, which many nodes mount at once: provisioner, parameters, mount options, and the volume's size."
  type = object({
    provisioner   = string
    parameters    = map(string)
    mount_options = optional(list(string), [])
    size          = string
  })
  validation {
    condition     = can(regex("^[0-9]+(Gi|Ti)$", var.model_storage.size))
    error_message = "model_storage.size: give a size in Gi or Ti, for example 300Gi."
  }
}

variable "disk_storage" {
  description = "Storage class of disks that one node mounts: provisioner and parameters."
  type = object({
    provisioner = string
    parameters  = map(string)
  })
}

variable "gpu" {
  description = "The GPUs. type: the card's name in the chart, for example h100-80gb, or other, which skips the check of memory. node_selector: labels of the nodes that have them."
  type = object({
    type          = string
    node_selector = optional(map(string), {})
  })
}

variable "prefill" {
  description = "The workers that compute prompts. replicas: their number; with 0 decode workers compute prompts. max_replicas: the most workers to which the pool grows under load; without it the pool does not grow. tp: GPUs of a worker. node_pool: the GPU pool on whose nodes they run; any by default."
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
  description = "The workers that generate answers; its fields are those of prefill."
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
    error_message = "decode.tp: differs from prefill.tp, and model.shard lays the weights out for one of them; give both pools the same tp, or set model.shard to false."
  }
  validation {
    condition     = var.decode.max_replicas == null ? true : var.decode.max_replicas >= var.decode.replicas
    error_message = "decode.max_replicas: a pool that grows begins with at most max_replicas workers."
  }
}

variable "routers" {
  description = "Number of routers, each of which is a pod."
  type        = number
  default     = 2
  validation {
    condition     = var.routers >= 1 && floor(var.routers) == var.routers
    error_message = "routers: give a whole number from 1 on."
  }
}

variable "values" {
  description = "Further values of the chart (helm/values.yaml), such as config, ingress, service or networkPolicy.clients. They override those that this module sets."
  type        = any
  default     = {}
}

variable "ray_token_secret" {
  description = "Name of a Secret in the namespace with Ray's token as auth_token. By default the module creates one."
  type        = string
  default     = null
}

variable "api_keys_secret" {
  description = "Name of a Secret in the namespace with the file of API keys' hashes (python -m router.access.keys) as keys. By default the module creates one with a single API key, and also stores the key itself in it, as key."
  type        = string
  default     = null
}

variable "secrets_revision" {
  description = "Raise it to replace the Secrets that the module created: Ray's token, the API key, and Grafana's password."
  type        = number
  default     = 1
  validation {
    condition     = var.secrets_revision >= 1 && floor(var.secrets_revision) == var.secrets_revision
    error_message = "secrets_revision: give a whole number from 1 on."
  }
}

variable "monitoring" {
  description = "Prometheus and Grafana. enabled: whether to install them. retention: how long Prometheus keeps metrics. size: size of its disk."
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
  description = "Charts that the cloud's nodes need, for example device plugins. repository, chart, version: which chart. namespace: where to install it. values: its values as YAML."
  type = map(object({
    repository = string
    chart      = string
    version    = string
    namespace  = string
    values     = string
  }))
  default = {}
}
