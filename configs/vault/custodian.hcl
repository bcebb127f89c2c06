# provisiond: the custodian of the escrow. With the offline identity he opens what
# stations sealed while Vault was away, and stores it where it belongs. He creates
# records, claims and states as a station does, and cannot read a key.

path "{{mount}}/metadata/escrow/*" {
  capabilities = ["read", "list"]
}

path "{{mount}}/data/escrow/+/+/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/escrow/+/+/+/state/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/escrow/+/+/+/drained" {
  capabilities = ["create"]
}

path "{{mount}}/subkeys/escrow/*" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/+" {
  capabilities = ["create"]
}

path "{{mount}}/subkeys/units/+/+/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/claim/+" {
  capabilities = ["create", "read"]
}

path "{{mount}}/data/units/+/+/+/state/+" {
  capabilities = ["create", "read"]
}

path "{{mount}}/data/store" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
