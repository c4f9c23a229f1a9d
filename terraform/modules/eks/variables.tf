variable "name" {
  description = "Name of the EKS cluster, and the beginning of all other names."
  type        = string
  default     = "ling"
  validation {
    condition     = can(regex("^[a-z][-a-z0-9]{0,30}[a-z0-9]$", var.name))
    error_message = "name: give 2 to 32 of a-z, 0-9 and -, beginning with a letter and not ending with -."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, as MAJOR.MINOR."
  type        = string
  default     = "1.34"
  validation {
    condition     = can(regex("^1\\.[0-9]+$", var.kubernetes_version))
    error_message = "kubernetes_version: give MAJOR.MINOR, for example 1.34."
  }
}

variable "cidr" {
  description = "IPv4 range of the VPC, a /16. Each zone's private subnet gets a /20 of it."
  type        = string
  default     = "10.0.0.0/16"
  validation {
    condition     = can(cidrnetmask(var.cidr)) && endswith(var.cidr, "/16")
    error_message = "cidr: give an IPv4 network of 16 bits, for example 10.0.0.0/16."
  }
}

variable "zones" {
  description = "2 to 6 availability zones of one region, including those of the GPUs. The NAT gateway and the CPU nodes are in the first one."
  type        = list(string)
  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 6 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones: give 2 to 6 different ones; EKS needs two, even if all nodes are in one."
  }
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API can be reached over the internet. With an empty list it can be reached only from the VPC."
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

variable "admin_roles" {
  description = "ARNs of IAM roles that administer the cluster, in addition to the identity that creates it."
  type        = set(string)
  default     = []
  validation {
    condition     = alltrue([for role in var.admin_roles : can(regex("^arn:[-a-z]+:iam::[0-9]{12}:role/", role))])
    error_message = "admin_roles: give ARNs of roles, arn:aws:iam::123456789012:role/NAME."
  }
}

variable "cpu_pool" {
  description = "The nodes for Ray's head, routers, operator and monitoring."
  type = object({
    instance_type = optional(string, "m7i.4xlarge")
    min_nodes     = optional(number, 2)
    max_nodes     = optional(number, 4)
    disk_gib      = optional(number, 100)
  })
  default = {}
  validation {
    condition     = var.cpu_pool.min_nodes >= 1 && var.cpu_pool.max_nodes >= var.cpu_pool.min_nodes
    error_message = "cpu_pool: give at least 1 as min_nodes, and max_nodes not below it."
  }
}

variable "gpu_pools" {
  description = "The pools of nodes with GPUs, by name. zone: one of zones; the first by default. capacity_type: ON_DEMAND, SPOT or CAPACITY_BLOCK. capacity_reservation_id: the reservation or capacity block that the nodes use. placement_group: whether the nodes are placed close together. efa_interfaces: number of EFA interfaces of a node (p5.48xlarge has 32, p5en.48xlarge 16); 0 for none. disk_gib: size of the root disk."
  type = map(object({
    instance_type           = string
    zone                    = optional(string)
    min_nodes               = number
    max_nodes               = number
    disk_gib                = optional(number, 300)
    capacity_type           = optional(string, "ON_DEMAND")
    capacity_reservation_id = optional(string)
    placement_group         = optional(bool, true)
    efa_interfaces          = optional(number, 0)
  }))
  validation {
    condition     = length(var.gpu_pools) > 0 && alltrue([for name, pool in var.gpu_pools : can(regex("^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$", name)) && name != "cpu"])
    error_message = "gpu_pools: give at least one, by a name of at most 20 of a-z, 0-9 and -, other than cpu."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.zone == null ? true : contains(var.zones, pool.zone)])
    error_message = "gpu_pools: zone must be one of zones."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.min_nodes >= 0 && pool.max_nodes >= 1 && pool.max_nodes >= pool.min_nodes])
    error_message = "gpu_pools: give at least 1 as max_nodes, and min_nodes from 0 to that."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : contains(["ON_DEMAND", "SPOT", "CAPACITY_BLOCK"], pool.capacity_type)])
    error_message = "gpu_pools: capacity_type is ON_DEMAND, SPOT or CAPACITY_BLOCK."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.capacity_reservation_id != null if pool.capacity_type == "CAPACITY_BLOCK"])
    error_message = "gpu_pools: CAPACITY_BLOCK needs capacity_reservation_id, the block that was bought."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.efa_interfaces >= 0 && pool.efa_interfaces <= 32 && floor(pool.efa_interfaces) == pool.efa_interfaces])
    error_message = "gpu_pools: efa_interfaces is a whole number from 0 to 32."
  }
}

variable "log_days" {
  description = "Number of days for which the control plane's logs are kept."
  type        = number
  default     = 90
}

variable "deletion_protection" {
  description = "Whether EKS refuses to delete the cluster. Set it to false and apply before a terraform destroy."
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
