# provisiond: rework of one unit, 24:0a:c4:00:00:01. `provisiond keystore ticket` makes a
# short-lived token with it. It reads that unit's key, and nothing of any other.

path "provisiond/data/units/01/24:0a:c4:00:00:01/*" {
  capabilities = ["read"]
}

path "provisiond/subkeys/units/01/24:0a:c4:00:00:01/*" {
  capabilities = ["read"]
}

path "provisiond/data/store" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
