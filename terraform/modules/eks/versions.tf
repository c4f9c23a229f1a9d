terraform {
  required_version = ">= 1.11"

  required_providers {
    # 5.x can't protect a cluster from being deleted.
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.25"
    }
  }
}
