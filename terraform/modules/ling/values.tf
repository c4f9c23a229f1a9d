# The chart's values. They refer only to variables, so tests can evaluate them without a cloud.

locals {
  operator_namespace   = "kuberay-operator"
  monitoring_namespace = "monitoring"
  model_claim          = "models"

  ray_token_secret = var.ray_token_secret == null ? "ling-ray-token" : var.ray_token_secret
  api_keys_secret  = var.api_keys_secret == null ? "ling-api-keys" : var.api_keys_secret

  values = {
    image = {
      repository = var.image.repository
      tag        = var.image.tag
    }
    model = {
      source     = var.model.repository != "" ? "hub" : var.model.prefix != "" ? "store" : "folder"
      path       = var.model.path
      repository = var.model.repository
      prefix     = var.model.prefix
      secretName = var.model.secret
      env        = var.model.env
      servedName = var.model.served_name
      format     = var.model.format
      volume     = { existingClaim = var.model.path != "" ? local.model_claim : "" }
      cache      = { existingClaim = var.model.path != "" ? "" : local.model_claim }
      shard      = { enabled = var.model.shard }
    }
    device         = "cuda"
    serviceAccount = { name = var.model.service_account == null ? "" : var.model.service_account.name }
    gpu = {
      type         = var.gpu.type
      nodeSelector = var.gpu.node_selector
    }
    prefill = {
      replicas     = var.prefill.replicas
      maxReplicas  = var.prefill.max_replicas
      tp           = var.prefill.tp
      nodeSelector = var.prefill.node_pool == null ? {} : { "ling/pool" = var.prefill.node_pool }
    }
    decode = {
      replicas     = var.decode.replicas
      maxReplicas  = var.decode.max_replicas
      tp           = var.decode.tp
      nodeSelector = var.decode.node_pool == null ? {} : { "ling/pool" = var.decode.node_pool }
    }
    router      = { replicas = var.routers }
    autoscaling = { enabled = var.prefill.max_replicas != null || var.decode.max_replicas != null }
    auth        = { secretName = local.ray_token_secret }
    apiKeys = {
      secretName     = local.api_keys_secret
      testSecretName = var.api_keys_secret == null ? local.api_keys_secret : ""
    }
    networkPolicy = {
      enabled             = true
      operatorNamespace   = local.operator_namespace
      monitoringNamespace = local.monitoring_namespace
    }
    podMonitor     = { enabled = var.monitoring.enabled }
    prometheusRule = { enabled = var.monitoring.enabled }
    dashboards     = { enabled = var.monitoring.enabled }
  }
}
