# provisiond: the OTA backend. It reads values, the keys of all units among them,
# and does nothing else: it cannot write and cannot list.

path "provisiond/data/units/+/+/+" {
  capabilities = ["read"]
}

path "provisiond/data/units/+/+/claim/+" {
  capabilities = ["read"]
}

path "provisiond/data/units/+/+/+/state/+" {
  capabilities = ["read"]
}

path "provisiond/data/store" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
