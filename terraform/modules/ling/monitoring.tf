resource "kubernetes_namespace_v1" "monitoring" {
  count = var.monitoring.enabled ? 1 : 0

  metadata {
    name = local.monitoring_namespace
  }
}

resource "helm_release" "monitoring" {
  count = var.monitoring.enabled ? 1 : 0

  name       = "monitoring"
  repository = "https://prometheus-community.github.io/helm-charts"
  chart      = "kube-prometheus-stack"
  version    = "69.7.3"
  namespace  = kubernetes_namespace_v1.monitoring[0].metadata[0].name
  timeout    = 900

  values = [yamlencode({
    prometheus = {
      prometheusSpec = {
        retention = var.monitoring.retention
        # Also use the monitors of other releases, such as this chart's.
        podMonitorSelectorNilUsesHelmValues     = false
        serviceMonitorSelectorNilUsesHelmValues = false
        ruleSelectorNilUsesHelmValues           = false
        storageSpec = {
          volumeClaimTemplate = {
            spec = {
              storageClassName = kubernetes_storage_class_v1.disks.metadata[0].name
              accessModes      = ["ReadWriteOnce"]
              resources        = { requests = { storage = var.monitoring.size } }
            }
          }
        }
      }
    }
    grafana = {
      admin = {
        existingSecret = kubernetes_secret_v1.grafana[0].metadata[0].name
        userKey        = "admin-user"
        passwordKey    = "admin-password"
      }
      sidecar = { dashboards = { enabled = true, label = "grafana_dashboard", labelValue = "1", searchNamespace = "ALL" } }
    }
    # The cloud runs these parts and does not expose their metrics.
    kubeControllerManager = { enabled = false }
    kubeScheduler         = { enabled = false }
    kubeEtcd              = { enabled = false }
    kubeProxy             = { enabled = false }
  })]
}
