variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of Google Cloud."
  type        = string
  default     = "us-central1"
}

variable "zone" {
  description = "Zone of the region, one that has the GPUs."
  type        = string
  default     = "us-central1-a"
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API may be reached, the one Terraform runs in among them."
  type        = list(string)
}

variable "reservation" {
  description = "Name of the GPU node's reservation; on demand without."
  type        = string
  default     = null
}

variable "image_repository" {
  description = "Artifact Registry's repository the image is in, if it is."
  type = object({
    project  = string
    location = string
    name     = string
  })
  default = null
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
  description = "Whether Terraform refuses to delete the cluster."
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
