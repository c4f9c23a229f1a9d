# Nodes may only write logs and metrics, and pull images.
resource "google_service_account" "nodes" {
  project      = var.project
  account_id   = "${var.name}-nodes"
  display_name = "Nodes of ${var.name}"
}

resource "google_project_iam_member" "nodes" {
  project = var.project
  role    = "roles/container.defaultNodeServiceAccount"
  member  = google_service_account.nodes.member
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  count = var.image_repository == null ? 0 : 1

  project    = var.image_repository.project
  location   = var.image_repository.location
  repository = var.image_repository.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.nodes.member
}

data "google_project" "this" {
  project_id = var.project
}

# Pods that fetch checkpoints may read one bucket, by their Kubernetes service account, without a key.
resource "google_storage_bucket_iam_member" "models" {
  count = var.model_bucket == null ? 0 : 1

  bucket = var.model_bucket.name
  role   = "roles/storage.objectViewer"
  member = "principal://iam.googleapis.com/projects/${data.google_project.this.number}/locations/global/workloadIdentityPools/${var.project}.svc.id.goog/subject/ns/${var.model_bucket.namespace}/sa/${var.model_bucket.service_account}"
}
