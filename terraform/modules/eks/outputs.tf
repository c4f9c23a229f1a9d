output "cluster_name" {
  description = "Name of the EKS cluster."
  value       = aws_eks_cluster.this.name
}

output "endpoint" {
  description = "URL of Kubernetes' API."
  value       = aws_eks_cluster.this.endpoint
}

output "certificate_authority" {
  description = "Certificate of the authority that signed Kubernetes' API's certificate, PEM in base64."
  value       = aws_eks_cluster.this.certificate_authority[0].data
}

output "model_storage" {
  description = "Provisioner and parameters of the volume with the checkpoint, which is a folder of an EFS file system, owned by the chart's user."
  value = {
    provisioner = "efs.csi.aws.com"
    parameters = {
      provisioningMode = "efs-ap"
      fileSystemId     = aws_efs_file_system.models.id
      directoryPerms   = "750"
      uid              = "10001"
      gid              = "10001"
    }
    mount_options = ["tls"]
  }
  depends_on = [aws_efs_mount_target.models, aws_vpc_security_group_ingress_rule.models, aws_eks_addon.storage]
}

output "disk_storage" {
  description = "Provisioner and parameters of encrypted disks."
  value = {
    provisioner = "ebs.csi.aws.com"
    parameters  = { type = "gp3", encrypted = "true" }
  }
  depends_on = [aws_eks_addon.storage]
}

output "node_charts" {
  description = "Charts that these nodes need: device plugins for GPUs and EFA, and the cluster autoscaler."
  value = merge(
    {
      nvidia-device-plugin = {
        repository = "https://nvidia.github.io/k8s-device-plugin"
        chart      = "nvidia-device-plugin"
        version    = "0.17.4"
        namespace  = "kube-system"
        values     = yamlencode({ nodeSelector = { "nvidia.com/gpu.present" = "true" } })
      }
      cluster-autoscaler = {
        repository = "https://kubernetes.github.io/autoscaler"
        chart      = "cluster-autoscaler"
        version    = "9.52.1"
        namespace  = "kube-system"
        values = yamlencode({
          cloudProvider = "aws"
          awsRegion     = data.aws_region.current.region
          autoDiscovery = { clusterName = aws_eks_cluster.this.name }
          rbac          = { serviceAccount = { name = aws_eks_pod_identity_association.autoscaler.service_account } }
        })
      }
    },
    length(local.efa_pools) == 0 ? {} : {
      aws-efa-k8s-device-plugin = {
        repository = "https://aws.github.io/eks-charts"
        chart      = "aws-efa-k8s-device-plugin"
        version    = "v0.5.7"
        namespace  = "kube-system"
        values = yamlencode({
          nodeSelector = { "vpc.amazonaws.com/efa.present" = "true" }
          tolerations  = [{ key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" }]
        })
      }
    },
  )
  depends_on = [aws_eks_addon.dns]
}
