resource "kubernetes_namespace_v1" "ling" {
  metadata {
    name   = var.namespace
    labels = { "pod-security.kubernetes.io/enforce" = "restricted" }
  }
}

resource "kubernetes_storage_class_v1" "models" {
  metadata {
    name = "${var.namespace}-models"
  }
  storage_provisioner    = var.model_storage.provisioner
  parameters             = var.model_storage.parameters
  mount_options          = var.model_storage.mount_options
  reclaim_policy         = "Retain"
  volume_binding_mode    = "Immediate"
  allow_volume_expansion = true
}

resource "kubernetes_storage_class_v1" "disks" {
  metadata {
    name = "${var.namespace}-disks"
  }
  storage_provisioner    = var.disk_storage.provisioner
  parameters             = var.disk_storage.parameters
  reclaim_policy         = "Delete"
  volume_binding_mode    = "WaitForFirstConsumer"
  allow_volume_expansion = true
}

resource "kubernetes_persistent_volume_claim_v1" "models" {
  metadata {
    name      = local.model_claim
    namespace = kubernetes_namespace_v1.ling.metadata[0].name
  }
  spec {
    access_modes       = ["ReadWriteMany"]
    storage_class_name = kubernetes_storage_class_v1.models.metadata[0].name
    resources {
      requests = { storage = var.model_storage.size }
    }
  }
  wait_until_bound = false
}

resource "kubernetes_service_account_v1" "models" {
  count = var.model.service_account == null ? 0 : 1

  metadata {
    name        = var.model.service_account.name
    namespace   = kubernetes_namespace_v1.ling.metadata[0].name
    annotations = var.model.service_account.annotations
  }
}

resource "helm_release" "node" {
  for_each = var.node_charts

  name             = each.key
  repository       = each.value.repository
  chart            = each.value.chart
  version          = each.value.version
  namespace        = each.value.namespace
  create_namespace = true
  values           = [each.value.values]
}

resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = "1.6.1"
  namespace        = local.operator_namespace
  create_namespace = true
}

resource "helm_release" "ling" {
  count = var.deploy ? 1 : 0

  name      = "ling"
  chart     = abspath("${path.module}/../../../helm")
  namespace = kubernetes_namespace_v1.ling.metadata[0].name
  values    = [yamlencode(local.values), yamlencode(var.values)]

  depends_on = [
    helm_release.kuberay,
    helm_release.monitoring,
    helm_release.node,
    kubernetes_persistent_volume_claim_v1.models,
    kubernetes_secret_v1.api_keys,
    kubernetes_secret_v1.ray_token,
    kubernetes_service_account_v1.models,
  ]
}
