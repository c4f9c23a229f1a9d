output "namespace" {
  description = "Namespace in which the cluster runs."
  value       = kubernetes_namespace_v1.ling.metadata[0].name
}

output "model_claim" {
  description = "PersistentVolumeClaim of the volume with the checkpoint."
  value       = kubernetes_persistent_volume_claim_v1.models.metadata[0].name
}

output "commands" {
  description = "Commands that show the cluster's start, print the API key and Grafana's password, test the cluster, and forward its ports."
  value = {
    status   = "kubectl -n ${var.namespace} get rayservice ling -w"
    api_key  = "kubectl -n ${var.namespace} get secret ${local.api_keys_secret} -o jsonpath='{.data.key}' | base64 -d"
    test     = "helm -n ${var.namespace} test ling"
    http     = "kubectl -n ${var.namespace} port-forward service/ling-serve-svc 8000"
    password = var.monitoring.enabled ? "kubectl -n ${local.monitoring_namespace} get secret grafana-admin -o jsonpath='{.data.admin-password}' | base64 -d" : null
    grafana  = var.monitoring.enabled ? "kubectl -n ${local.monitoring_namespace} port-forward service/monitoring-grafana 3000:80" : null
  }
}
