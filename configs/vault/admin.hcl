# provisiond: who sets it all up with `provisiond keystore init --vault`, and makes
# secret ids and rework tickets. This policy reads no key; but who writes policies
# can give himself any right on this mount, so its use is for two people and the
# audit log.

path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/{{mount}}" {
  capabilities = ["create", "update", "read"]
}

path "sys/mounts/transit" {
  capabilities = ["create", "update", "read"]
}

# Makes the stations' signing keys. It cannot sign with them, and not read or delete
# them; it could trim old versions, which ends a journal's signing and not its proof.
path "transit/keys/{{mount_name}}-station-*" {
  capabilities = ["create", "update", "read"]
}

# The same for the key with which the OTA backend signs manifests.
path "transit/keys/{{mount_name}}-ota-manifest" {
  capabilities = ["create", "update", "read"]
}

path "transit/keys/{{mount_name}}-ota-manifest/rotate" {
  capabilities = ["create", "update"]
}

path "{{mount}}/config" {
  capabilities = ["create", "update", "read"]
}

path "{{mount}}/data/store" {
  capabilities = ["create", "read"]
}

path "{{mount}}/metadata/*" {
  capabilities = ["read", "list"]
}

path "sys/policies/acl/{{mount_name}}-*" {
  capabilities = ["create", "update", "read"]
}

path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/approle" {
  capabilities = ["create", "update", "sudo"]
}

path "auth/approle/role/{{mount_name}}-*" {
  capabilities = ["create", "update", "read"]
}

path "auth/token/roles/{{mount_name}}-rework" {
  capabilities = ["create", "update", "read"]
}

path "auth/token/create/{{mount_name}}-rework" {
  capabilities = ["create", "update"]
}

path "sys/audit" {
  capabilities = ["read", "sudo"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
