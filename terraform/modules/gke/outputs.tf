output "cluster_name" {
  description = "Name of the GKE cluster."
  value       = google_container_cluster.this.name
}

output "endpoint" {
  description = "Address of Kubernetes' API."
  value       = google_container_cluster.this.endpoint
}

output "certificate_authority" {
  description = "Certificate of the authority that signed Kubernetes' API's certificate, PEM in base64."
  value       = google_container_cluster.this.master_auth[0].cluster_ca_certificate
}

output "model_storage" {
  description = "Provisioner and parameters of the volume with the checkpoint, which is a Filestore instance of at least 1Ti."
  value = {
    provisioner   = "filestore.csi.storage.gke.io"
    parameters    = { tier = "zonal", network = google_compute_network.this.name }
    mount_options = []
  }
  depends_on = [google_container_node_pool.cpu]
}

output "disk_storage" {
  description = "Provisioner and parameters of disks."
  value = {
    provisioner = "pd.csi.storage.gke.io"
    parameters = merge(
      { type = "pd-balanced" },
      var.kms_key == null ? {} : { disk-encryption-kms-key = var.kms_key },
    )
  }
  depends_on = [google_container_node_pool.cpu]
}
