# Ling-2.6-flash in FP8 on one node of 8 H100: a prefill and a decode worker of 4 GPUs each.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.25"
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

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "ling" }
  }
}

locals {
  # The providers run this command whenever they need a token, so no token is stored.
  token_command = ["eks", "get-token", "--cluster-name", module.eks.cluster_name, "--region", var.region]
}

provider "kubernetes" {
  host                   = module.eks.endpoint
  cluster_ca_certificate = base64decode(module.eks.certificate_authority)
  exec {
    api_version = "client.authentication.k8s.io/v1beta1"
    command     = "aws"
    args        = local.token_command
  }
}

provider "helm" {
  kubernetes = {
    host                   = module.eks.endpoint
    cluster_ca_certificate = base64decode(module.eks.certificate_authority)
    exec = {
      api_version = "client.authentication.k8s.io/v1beta1"
      command     = "aws"
      args        = local.token_command
    }
  }
}

module "eks" {
  source = "../../modules/eks"

  zones               = var.zones
  api_cidrs           = var.api_cidrs
  model_bucket        = var.model_bucket
  deletion_protection = var.deletion_protection
  gpu_pools = {
    h100 = {
      instance_type           = "p5.48xlarge"
      min_nodes               = 1
      max_nodes               = 1
      capacity_reservation_id = var.capacity_reservation_id
    }
  }
}

module "ling" {
  source = "../../modules/ling"

  deploy        = var.deploy
  image         = var.image
  model         = var.model
  model_storage = merge(module.eks.model_storage, { size = "300Gi" })
  disk_storage  = module.eks.disk_storage
  node_charts   = module.eks.node_charts
  gpu           = { type = "h100-80gb" }
  prefill       = { replicas = 1, tp = 4 }
  decode        = { replicas = 1, tp = 4 }
  values        = { config = { slots = 128, max_step_tokens = 4096 } }
}
