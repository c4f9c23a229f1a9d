# A plan with AWS's own schema and checks, and answers that are made up: no account is asked.

mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  zones       = ["us-west-2a", "us-west-2b"]
  api_cidrs   = ["203.0.113.7/32"]
  admin_roles = ["arn:aws:iam::123456789012:role/admin"]
  gpu_pools = {
    block = {
      instance_type           = "p5.48xlarge"
      zone                    = "us-west-2b"
      min_nodes               = 1
      max_nodes               = 2
      capacity_type           = "CAPACITY_BLOCK"
      capacity_reservation_id = "cr-0123456789abcdef0"
      efa_interfaces          = 32
    }
    spot = {
      instance_type   = "g6e.12xlarge"
      min_nodes       = 0
      max_nodes       = 4
      capacity_type   = "SPOT"
      placement_group = false
    }
  }
}

run "reserved_nodes_with_efa_and_spot_ones_without" {
  command = plan

  assert {
    condition     = [for i in aws_launch_template.gpu["block"].network_interfaces : i.interface_type] == concat(["efa"], [for i in range(31) : "efa-only"])
    error_message = "The first of 32 interfaces carries IP, the others EFA alone."
  }
  assert {
    condition     = aws_launch_template.gpu["block"].instance_market_options[0].market_type == "capacity-block" && length(aws_launch_template.gpu["block"].placement) == 1
    error_message = "Nodes of a capacity block are bought as such and stand together."
  }
  assert {
    condition     = length(aws_launch_template.gpu["spot"].network_interfaces) + length(aws_launch_template.gpu["spot"].placement) == 0 && aws_eks_node_group.gpu["spot"].capacity_type == "SPOT"
    error_message = "Spot nodes go without EFA and without a placement group."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && keys(aws_eks_access_entry.admin) == ["arn:aws:iam::123456789012:role/admin"]
    error_message = "The API is open to api_cidrs, and admin_roles administer."
  }
}

run "a_closed_api_and_no_efa" {
  command = plan

  variables {
    api_cidrs = []
    gpu_pools = { one = { instance_type = "g6e.12xlarge", min_nodes = 1, max_nodes = 1 } }
  }
  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && length(aws_security_group.efa) == 0
    error_message = "Without api_cidrs the API is closed; without EFA its group is not made."
  }
}
