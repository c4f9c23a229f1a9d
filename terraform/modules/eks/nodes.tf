locals {
  cluster_group = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  efa_pools     = { for name, pool in var.gpu_pools : name => pool if pool.efa_interfaces > 0 }
}

resource "aws_launch_template" "cpu" {
  name_prefix            = "${var.name}-cpu-"
  instance_type          = var.cpu_pool.instance_type
  vpc_security_group_ids = [local.cluster_group]
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = var.cpu_pool.disk_gib
      volume_type = "gp3"
      encrypted   = true
    }
  }

  metadata_options {
    http_tokens = "required"
    # With one hop only the node reaches its metadata; a pod is one hop further.
    http_put_response_hop_limit = 1
  }
}

resource "aws_eks_node_group" "cpu" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "cpu"
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = [aws_subnet.private[var.zones[0]].id]
  ami_type        = "AL2023_x86_64_STANDARD"
  labels          = { "ling/pool" = "cpu" }

  launch_template {
    id      = aws_launch_template.cpu.id
    version = aws_launch_template.cpu.latest_version
  }

  scaling_config {
    min_size     = var.cpu_pool.min_nodes
    max_size     = var.cpu_pool.max_nodes
    desired_size = var.cpu_pool.min_nodes
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    # The autoscaler changes this.
    ignore_changes = [scaling_config[0].desired_size]
  }
  depends_on = [
    aws_eks_addon.network,
    aws_eks_addon.proxy,
    aws_iam_role_policy_attachment.nodes,
    aws_iam_role_policy_attachment.pod,
  ]
}

resource "aws_placement_group" "gpu" {
  for_each = { for name, pool in var.gpu_pools : name => pool if pool.placement_group }

  name     = "${var.name}-${each.key}"
  strategy = "cluster"
}

# EFA needs a security group whose rules allow all traffic with itself. Only these nodes are in it.
resource "aws_security_group" "efa" {
  count = length(local.efa_pools) > 0 ? 1 : 0

  name_prefix = "${var.name}-efa-"
  description = "EFA among the GPU nodes of ${var.name}"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  count = length(local.efa_pools) > 0 ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  count = length(local.efa_pools) > 0 ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
}

resource "aws_launch_template" "gpu" {
  for_each = var.gpu_pools

  name_prefix            = "${var.name}-${each.key}-"
  instance_type          = each.value.instance_type
  vpc_security_group_ids = each.value.efa_interfaces > 0 ? null : [local.cluster_group]
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = each.value.disk_gib
      volume_type = "gp3"
      encrypted   = true
    }
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # One interface per network card. The first one also carries IP.
  dynamic "network_interfaces" {
    for_each = range(each.value.efa_interfaces)
    content {
      network_card_index    = network_interfaces.value
      device_index          = network_interfaces.value == 0 ? 0 : 1
      interface_type        = network_interfaces.value == 0 ? "efa" : "efa-only"
      security_groups       = [local.cluster_group, aws_security_group.efa[0].id]
      delete_on_termination = true
    }
  }

  dynamic "placement" {
    for_each = each.value.placement_group ? [aws_placement_group.gpu[each.key].name] : []
    content {
      group_name = placement.value
    }
  }

  dynamic "instance_market_options" {
    for_each = each.value.capacity_type == "CAPACITY_BLOCK" ? ["capacity-block"] : []
    content {
      market_type = instance_market_options.value
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.value.capacity_reservation_id == null ? [] : [each.value.capacity_reservation_id]
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }
}

resource "aws_eks_node_group" "gpu" {
  for_each = var.gpu_pools

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = [aws_subnet.private[each.value.zone == null ? var.zones[0] : each.value.zone].id]
  ami_type        = "AL2023_x86_64_NVIDIA"
  capacity_type   = each.value.capacity_type

  labels = merge(
    { "ling/pool" = each.key, "nvidia.com/gpu.present" = "true" },
    each.value.efa_interfaces > 0 ? { "vpc.amazonaws.com/efa.present" = "true" } : {},
  )

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.gpu[each.key].id
    version = aws_launch_template.gpu[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min_nodes
    max_size     = each.value.max_nodes
    desired_size = each.value.min_nodes
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
  depends_on = [
    aws_eks_addon.network,
    aws_eks_addon.proxy,
    aws_iam_role_policy_attachment.nodes,
    aws_iam_role_policy_attachment.pod,
  ]
}
