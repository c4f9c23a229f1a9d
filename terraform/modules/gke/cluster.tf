resource "google_container_cluster" "this" {
  project             = var.project
  name                = var.name
  location            = var.region
  node_locations      = [var.zone]
  network             = google_compute_network.this.id
  subnetwork          = google_compute_subnetwork.this.id
  networking_mode     = "VPC_NATIVE"
  deletion_protection = var.deletion_protection

  # Dataplane V2 enforces NetworkPolicies; without it, nothing enforces the chart's.
  datapath_provider = "ADVANCED_DATAPATH"

  # The node pools are separate resources.
  remove_default_node_pool = true
  initial_node_count       = 1
  node_config {
    service_account   = google_service_account.nodes.email
    boot_disk_kms_key = var.kms_key
  }

  release_channel {
    channel = var.release_channel
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = length(var.api_cidrs) == 0
    master_ipv4_cidr_block  = var.cidrs.control_plane
  }

  master_authorized_networks_config {
    gcp_public_cidrs_access_enabled = false
    dynamic "cidr_blocks" {
      for_each = var.api_cidrs
      content {
        cidr_block = cidr_blocks.value
      }
    }
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  dynamic "database_encryption" {
    for_each = var.kms_key == null ? [] : [var.kms_key]
    content {
      state    = "ENCRYPTED"
      key_name = database_encryption.value
    }
  }

  addons_config {
    gcp_filestore_csi_driver_config {
      enabled = true
    }
    gce_persistent_disk_csi_driver_config {
      enabled = true
    }
  }

  logging_config {
    enable_components = ["SYSTEM_COMPONENTS", "WORKLOADS"]
  }

  # Prometheus in the cluster collects all other metrics.
  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]
    managed_prometheus {
      enabled = false
    }
  }

  lifecycle {
    # GKE reports this for the default pool, which was removed.
    ignore_changes = [node_config, initial_node_count]
  }
  depends_on = [google_compute_router_nat.this, google_project_iam_member.nodes]
}
