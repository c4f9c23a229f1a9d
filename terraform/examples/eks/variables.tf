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
  description = "Whether the chart is installed. A checkpoint given as path has to be in the volume first."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether EKS refuses to delete the cluster."
  type        = bool
  default     = true
}

variable "model" {
  description = "What is served, as the module ling takes it: fetched from a hub or a bucket, or a folder that is copied to the volume."
  type        = any
  default     = { repository = "inclusionAI/Ling-2.6-flash-FP8", format = "fp8" }
}

variable "model_bucket" {
  description = "Bucket with checkpoints, which pods of one service account may read; none if not given."
  type = object({
    name            = string
    namespace       = optional(string, "ling")
    service_account = optional(string, "ling-models")
  })
  default = null
}
