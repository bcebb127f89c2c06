# provisiond: the OTA backend. It reads values, the keys of all units among them,
# and does nothing else: it cannot write and cannot list.

path "{{mount}}/data/units/+/+/+" {
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

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
