# provisiond: the OTA backend. It reads values, the keys of all units among them,
# and signs manifests with one key, if there is that key. It does nothing else: it
# cannot write and cannot list.

path "{{mount}}/data/units/+/+/+" {
  capabilities = ["read"]
}

# What is stored beside a key, without the key: it is what the server looks at
# before a unit has proven itself.
path "{{mount}}/subkeys/units/+/+/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/claim/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/+/state/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/store" {
  capabilities = ["read"]
}

# The newest version or another one; the private half stays in Vault.
path "transit/keys/{{mount_name}}-ota-manifest" {
  capabilities = ["read"]
}

path "transit/sign/{{mount_name}}-ota-manifest" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
