# provisiond: an auditor. He lists everything, sees what is stored beside the
# keys, and reads claims, states and checkpoints. He cannot read a key and cannot
# write.

path "provisiond/metadata/*" {
  capabilities = ["read", "list"]
}

path "provisiond/subkeys/units/+/+/+" {
  capabilities = ["read"]
}

path "provisiond/data/units/+/+/claim/+" {
  capabilities = ["read"]
}

path "provisiond/data/units/+/+/+/state/+" {
  capabilities = ["read"]
}

path "provisiond/data/checkpoints/+/+/+" {
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
