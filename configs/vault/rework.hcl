# provisiond: rework of one unit, {{unit}}. `provisiond keystore ticket` makes a
# short-lived token with it. It reads that unit's key, and nothing of any other.

path "{{mount}}/data/{{unit_path}}/*" {
  capabilities = ["read"]
}

path "{{mount}}/subkeys/{{unit_path}}/*" {
  capabilities = ["read"]
}

path "{{mount}}/data/store" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
