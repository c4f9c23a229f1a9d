variable "project" {
  description = "Id of the Google Cloud project."
  type        = string
  validation {
    condition     = can(regex("^[a-z][-a-z0-9]{4,28}[a-z0-9]$", var.project))
    error_message = "project: give the project's id, not its number or title."
  }
}

variable "name" {
  description = "Name of the GKE cluster, and the beginning of all other names."
  type        = string
  default     = "ling"
  validation {
    condition     = can(regex("^[a-z][-a-z0-9]{0,18}[a-z0-9]$", var.name))
    error_message = "name: give 2 to 20 of a-z, 0-9 and -, beginning with a letter and not ending with -."
  }
}

variable "region" {
  description = "Region of the cluster."
  type        = string
  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: give a region, for example us-central1; the zone is another setting."
  }
}

variable "zone" {
  description = "Zone of the nodes. GPU pools may name another zone."
  type        = string
  validation {
    condition     = startswith(var.zone, "${var.region}-")
    error_message = "zone: give one of the region, for example us-central1-a."
  }
}

variable "release_channel" {
  description = "GKE's release channel, which decides how soon Kubernetes is upgraded: RAPID, REGULAR or STABLE."
  type        = string
  default     = "REGULAR"
  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE"], var.release_channel)
    error_message = "release_channel: give RAPID, REGULAR or STABLE."
  }
}

variable "cidrs" {
  description = "IPv4 ranges of nodes, pods, Services and the control plane; the last must be a /28."
  type = object({
    nodes         = optional(string, "10.0.0.0/20")
    pods          = optional(string, "10.4.0.0/14")
    services      = optional(string, "10.8.0.0/20")
    control_plane = optional(string, "172.16.0.0/28")
  })
  default = {}
  validation {
    condition     = alltrue([for cidr in values(var.cidrs) : can(cidrnetmask(cidr))]) && endswith(var.cidrs.control_plane, "/28")
    error_message = "cidrs: give IPv4 networks, for example 10.0.0.0/20, and a /28 as control_plane."
  }
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API can be reached over the internet. With an empty list it can be reached only from the cluster's network."
  type        = list(string)
  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrnetmask(cidr))])
    error_message = "api_cidrs: give IPv4 networks, for example 203.0.113.0/24."
  }
  validation {
    condition     = alltrue([for cidr in var.api_cidrs : tonumber(split("/", cidr)[1]) >= 8 if can(cidrnetmask(cidr))])
    error_message = "api_cidrs: a network of fewer than 8 bits is open to strangers; name your own."
  }
}

variable "image_repository" {
  description = "Artifact Registry repository with the cluster's image, which the nodes get permission to read. By default the image is elsewhere."
  type = object({
    project  = string
    location = string
    name     = string
  })
  default = null
}

variable "kms_key" {
  description = "Key of the region that encrypts Kubernetes' Secrets and the nodes' disks, as projects/…/cryptoKeys/…. GKE's and Compute Engine's service agents must be allowed to use it. By default Google's own keys are used."
  type        = string
  default     = null
  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key: give projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY."
  }
}

variable "cpu_pool" {
  description = "The nodes for Ray's head, routers, operator and monitoring."
  type = object({
    machine_type = optional(string, "n2-standard-16")
    min_nodes    = optional(number, 2)
    max_nodes    = optional(number, 4)
    disk_gib     = optional(number, 100)
  })
  default = {}
  validation {
    condition     = var.cpu_pool.min_nodes >= 1 && var.cpu_pool.max_nodes >= var.cpu_pool.min_nodes
    error_message = "cpu_pool: give at least 1 as min_nodes, and max_nodes not below it."
  }
}

variable "gpu_pools" {
  description = "The pools of nodes with GPUs, by name. accelerator: the card's name in GKE, for example nvidia-h100-80gb; accelerators: number of cards of a node. zone: their zone, if it is not the variable zone. compact: whether the nodes are placed close together. spot: whether they are Spot nodes, which Google may take away. reservation: the reservation that they use. disk_gib, disk_type: size and type of the boot disk; the type must be one that the machine supports."
  type = map(object({
    machine_type = string
    accelerator  = string
    accelerators = number
    zone         = optional(string)
    min_nodes    = number
    max_nodes    = number
    disk_gib     = optional(number, 300)
    disk_type    = optional(string, "pd-ssd")
    compact      = optional(bool, true)
    spot         = optional(bool, false)
    reservation  = optional(string)
  }))
  validation {
    condition     = length(var.gpu_pools) > 0 && alltrue([for name, pool in var.gpu_pools : can(regex("^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$", name)) && name != "cpu"])
    error_message = "gpu_pools: give at least one, by a name of at most 20 of a-z, 0-9 and -, other than cpu."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.zone == null ? true : startswith(pool.zone, "${var.region}-")])
    error_message = "gpu_pools: zone must be one of the region."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.min_nodes >= 0 && pool.max_nodes >= 1 && pool.max_nodes >= pool.min_nodes])
    error_message = "gpu_pools: give at least 1 as max_nodes, and min_nodes from 0 to that."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : contains([1, 2, 4, 8, 16], pool.accelerators)])
    error_message = "gpu_pools: accelerators is 1, 2, 4, 8 or 16."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.reservation == null if pool.spot])
    error_message = "gpu_pools: a reservation holds no spot nodes; give only one of the two."
  }
}

variable "deletion_protection" {
  description = "Whether Terraform refuses to delete the cluster. Set it to false and apply before a terraform destroy."
  type        = bool
  default     = true
}

variable "model_bucket" {
  description = "A bucket with checkpoints that the pods of one service account may read. By default there is none."
  type = object({
    name            = string
    namespace       = optional(string, "ling")
    service_account = optional(string, "ling-models")
  })
  default = null
}
