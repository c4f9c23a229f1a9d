output "kubeconfig" {
  description = "Command that gives kubectl access to the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${module.eks.cluster_name}"
}

output "model_volume" {
  description = "Namespace and claim of the volume to copy the checkpoint to."
  value       = { namespace = module.ling.namespace, claim = module.ling.model_claim }
}

output "commands" {
  description = "Commands that watch, test and reach the cluster."
  value       = module.ling.commands
}
