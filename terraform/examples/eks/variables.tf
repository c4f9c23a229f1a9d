variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-west-2"
}

variable "zones" {
  description = "At least two zones of the region, the one with the GPUs first."
  type        = list(string)
  default     = ["us-west-2a", "us-west-2b"]
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API can be reached, including the one in which Terraform runs."
  type        = list(string)
}

variable "capacity_reservation_id" {
  description = "Id of the GPU node's reservation. By default the node is bought on demand."
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
  description = "Whether to install the chart. A checkpoint given as path must be in the volume first."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether EKS refuses to delete the cluster."
  type        = bool
  default     = true
}

variable "model" {
  description = "The checkpoint to serve, as the module ling takes it: fetched from a hub or a bucket, or a folder copied to the volume."
  type        = any
  default     = { repository = "inclusionAI/Ling-2.6-flash-FP8", format = "fp8" }
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
