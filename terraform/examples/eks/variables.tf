variable "region" {
  description = "Region of AWS."
  type        = string
  default     = "us-west-2"
}

variable "zones" {
  description = "At least two zones of the region, the GPUs' first."
  type        = list(string)
  default     = ["us-west-2a", "us-west-2b"]
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API may be reached, the one Terraform runs in among them."
  type        = list(string)
}

variable "capacity_reservation_id" {
  description = "Reservation of the GPU node; on demand without."
  type        = string
  default     = null
}

variable "image" {
  description = "The cluster's image."
  type = object({
    repository = string
    tag        = optional(string, "")
  })
}

variable "deploy" {
  description = "Whether the chart is installed: once the checkpoint is in the volume."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether EKS refuses to delete the cluster."
  type        = bool
  default     = true
}
