resource "aws_efs_file_system" "models" {
  encrypted       = true
  throughput_mode = "elastic"
  tags            = { Name = "${var.name}-models" }
}

resource "aws_security_group" "models" {
  name_prefix = "${var.name}-models-"
  description = "The file system with checkpoints, for the nodes of ${var.name}"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "models" {
  security_group_id            = aws_security_group.models.id
  referenced_security_group_id = local.cluster_group
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}

resource "aws_efs_mount_target" "models" {
  for_each = aws_subnet.private

  file_system_id  = aws_efs_file_system.models.id
  subnet_id       = each.value.id
  security_groups = [aws_security_group.models.id]
}
