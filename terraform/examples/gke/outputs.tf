output "kubeconfig" {
  description = "Command that gives kubectl access to the cluster."
  value       = "gcloud container clusters get-credentials ${module.gke.cluster_name} --region ${var.region} --project ${var.project}"
}

output "model_volume" {
  description = "Namespace and claim of the volume to copy the checkpoint to."
  value       = { namespace = module.ling.namespace, claim = module.ling.model_claim }
}

output "commands" {
  description = "Commands that watch, test and reach the cluster."
  value       = module.ling.commands
}
