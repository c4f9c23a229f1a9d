#!/usr/bin/env bash
# Makes the two instance profiles that aws.yaml names: `cluster/ray/aws-roles.sh BUCKET`, once an account, as somebody
# who may make roles. ling-node reads the checkpoint's bucket. ling-head does so too, and starts and ends the nodes.
set -euo pipefail
bucket=${1:?usage: aws-roles.sh BUCKET}
account=$(aws sts get-caller-identity --query Account --output text)

trust='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}'
read_bucket='{"Version":"2012-10-17","Statement":[
  {"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::'$bucket'"},
  {"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::'$bucket'/*"}]}'
# RunInstances resolves an image's name by ssm:GetParameters, and gives nodes their profile by iam:PassRole.
run_nodes='{"Version":"2012-10-17","Statement":[
  {"Effect":"Allow","Action":"ssm:GetParameters","Resource":"arn:aws:ssm:*::parameter/aws/service/*"},
  {"Effect":"Allow","Action":"iam:PassRole","Resource":"arn:aws:iam::'$account':role/ling-node"}]}'

for role in ling-node ling-head; do
    aws iam create-role --role-name "$role" --assume-role-policy-document "$trust"
    aws iam put-role-policy --role-name "$role" --policy-name checkpoint --policy-document "$read_bucket"
    aws iam create-instance-profile --instance-profile-name "$role"
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam put-role-policy --role-name ling-head --policy-name nodes --policy-document "$run_nodes"
aws iam attach-role-policy --role-name ling-head --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
