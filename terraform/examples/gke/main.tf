# Ling-2.6-flash in FP8 on one node of 8 H100: a prefill and a decode worker of 4 GPUs each.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.1"
    }
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = "~> 2.38"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

locals {
  # The providers run this command whenever they need a token, so no token is stored.
  token_command = "gke-gcloud-auth-plugin"
}

provider "kubernetes" {
  host                   = "https://${module.gke.endpoint}"
  cluster_ca_certificate = base64decode(module.gke.certificate_authority)
  exec {
    api_version = "client.authentication.k8s.io/v1beta1"
    command     = local.token_command
  }
}

provider "helm" {
  kubernetes = {
    host                   = "https://${module.gke.endpoint}"
    cluster_ca_certificate = base64decode(module.gke.certificate_authority)
    exec = {
      api_version = "client.authentication.k8s.io/v1beta1"
      command     = local.token_command
    }
  }
}

module "gke" {
  source = "../../modules/gke"

  project             = var.project
  region              = var.region
  zone                = var.zone
  api_cidrs           = var.api_cidrs
  model_bucket        = var.model_bucket
  image_repository    = var.image_repository
  deletion_protection = var.deletion_protection
  gpu_pools = {
    h100 = {
      machine_type = "a3-highgpu-8g"
      accelerator  = "nvidia-h100-80gb"
      accelerators = 8
      min_nodes    = 1
      max_nodes    = 1
      reservation  = var.reservation
    }
  }
}

module "ling" {
  source = "../../modules/ling"

  deploy        = var.deploy
  image         = var.image
  model         = var.model
  model_storage = merge(module.gke.model_storage, { size = "1Ti" })
  disk_storage  = module.gke.disk_storage
  gpu           = { type = "h100-80gb", node_selector = { "cloud.google.com/gke-accelerator" = "nvidia-h100-80gb" } }
  prefill       = { replicas = 1, tp = 4 }
  decode        = { replicas = 1, tp = 4 }
  values        = { config = { slots = 128, max_step_tokens = 4096 } }
}
