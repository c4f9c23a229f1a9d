variable "project" {
  description = "Id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "Google Cloud region."
  type        = string
  default     = "us-central1"
}

variable "zone" {
  description = "Zone of the region that has the GPUs."
  type        = string
  default     = "us-central1-a"
}

variable "api_cidrs" {
  description = "Networks from which Kubernetes' API can be reached, including the one in which Terraform runs."
  type        = list(string)
}

variable "reservation" {
  description = "Name of the GPU node's reservation. By default the node is bought on demand."
  type        = string
  default     = null
}

variable "image_repository" {
  description = "Artifact Registry repository with the image. By default the image is elsewhere."
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
  description = "Whether to install the chart. A checkpoint given as path must be in the volume first."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether Terraform refuses to delete the cluster."
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
