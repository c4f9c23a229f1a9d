# Terraform generates these while it runs and writes them only to Kubernetes, so neither plan nor state contains them.

ephemeral "random_password" "ray_token" {
  count   = var.ray_token_secret == null ? 1 : 0
  length  = 64
  special = false
}

ephemeral "random_password" "api_key" {
  count   = var.api_keys_secret == null ? 1 : 0
  length  = 43
  special = false
}

ephemeral "random_password" "grafana" {
  count   = var.monitoring.enabled ? 1 : 0
  length  = 32
  special = false
}

resource "kubernetes_secret_v1" "ray_token" {
  count = var.ray_token_secret == null ? 1 : 0

  metadata {
    name      = local.ray_token_secret
    namespace = kubernetes_namespace_v1.ling.metadata[0].name
  }
  data_wo          = { auth_token = ephemeral.random_password.ray_token[0].result }
  data_wo_revision = var.secrets_revision
}

# One Secret holds the key and its hash, because both must be of the same run. Routers get only the hash.
resource "kubernetes_secret_v1" "api_keys" {
  count = var.api_keys_secret == null ? 1 : 0

  metadata {
    name      = local.api_keys_secret
    namespace = kubernetes_namespace_v1.ling.metadata[0].name
  }
  data_wo = {
    key  = "sk-ling-${ephemeral.random_password.api_key[0].result}"
    keys = "default sha256:${sha256("sk-ling-${ephemeral.random_password.api_key[0].result}")}\n"
  }
  data_wo_revision = var.secrets_revision
}

resource "kubernetes_secret_v1" "grafana" {
  count = var.monitoring.enabled ? 1 : 0

  metadata {
    name      = "grafana-admin"
    namespace = kubernetes_namespace_v1.monitoring[0].metadata[0].name
  }
  data_wo = {
    admin-user     = "admin"
    admin-password = ephemeral.random_password.grafana[0].result
  }
  data_wo_revision = var.secrets_revision
}
