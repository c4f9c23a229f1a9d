locals {
  oauth_scopes = ["https://www.googleapis.com/auth/cloud-platform"]
}

resource "google_container_node_pool" "cpu" {
  project            = var.project
  name               = "cpu"
  location           = var.region
  cluster            = google_container_cluster.this.name
  node_locations     = [var.zone]
  initial_node_count = var.cpu_pool.min_nodes

  autoscaling {
    total_min_node_count = var.cpu_pool.min_nodes
    total_max_node_count = var.cpu_pool.max_nodes
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type      = var.cpu_pool.machine_type
    image_type        = "COS_CONTAINERD"
    disk_size_gb      = var.cpu_pool.disk_gib
    disk_type         = "pd-balanced"
    boot_disk_kms_key = var.kms_key
    service_account   = google_service_account.nodes.email
    oauth_scopes      = local.oauth_scopes
    labels            = { "ling/pool" = "cpu" }
    metadata          = { disable-legacy-endpoints = "true" }

    gvnic {
      enabled = true
    }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  lifecycle {
    # The autoscaler changes this.
    ignore_changes = [initial_node_count]
  }
}

# GKE itself taints these nodes with nvidia.com/gpu, and installs the driver and the device plugin.
resource "google_container_node_pool" "gpu" {
  for_each = var.gpu_pools

  project            = var.project
  name               = each.key
  location           = var.region
  cluster            = google_container_cluster.this.name
  node_locations     = [each.value.zone == null ? var.zone : each.value.zone]
  initial_node_count = each.value.min_nodes

  autoscaling {
    total_min_node_count = each.value.min_nodes
    total_max_node_count = each.value.max_nodes
    location_policy      = "ANY"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  # An upgrade removes a node before it adds the next, because GPUs are seldom to spare.
  upgrade_settings {
    max_surge       = 0
    max_unavailable = 1
  }

  dynamic "placement_policy" {
    for_each = each.value.compact ? ["COMPACT"] : []
    content {
      type = placement_policy.value
    }
  }

  node_config {
    machine_type      = each.value.machine_type
    image_type        = "COS_CONTAINERD"
    disk_size_gb      = each.value.disk_gib
    disk_type         = each.value.disk_type
    boot_disk_kms_key = var.kms_key
    spot              = each.value.spot
    service_account   = google_service_account.nodes.email
    oauth_scopes      = local.oauth_scopes
    labels            = { "ling/pool" = each.key }
    metadata          = { disable-legacy-endpoints = "true" }

    guest_accelerator {
      type  = each.value.accelerator
      count = each.value.accelerators
      gpu_driver_installation_config {
        gpu_driver_version = "LATEST"
      }
    }
    gvnic {
      enabled = true
    }
    dynamic "reservation_affinity" {
      for_each = each.value.reservation == null ? [] : [each.value.reservation]
      content {
        consume_reservation_type = "SPECIFIC_RESERVATION"
        key                      = "compute.googleapis.com/reservation-name"
        values                   = [reservation_affinity.value]
      }
    }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }
}
