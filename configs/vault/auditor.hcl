# provisiond: an auditor. He lists everything, sees what is stored beside the
# keys, and reads claims, states and checkpoints. He cannot read a key and cannot
# write.

path "{{mount}}/metadata/*" {
  capabilities = ["read", "list"]
}

path "{{mount}}/subkeys/units/+/+/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/claim/+" {
  capabilities = ["read"]
}

path "{{mount}}/data/units/+/+/+/state/+" {
  capabilities = ["read"]
}

path "{{mount}}/subkeys/escrow/*" {
  capabilities = ["read"]
}

path "{{mount}}/data/checkpoints/+/+/+" {
  capabilities = ["read"]
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
