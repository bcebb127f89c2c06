# provisiond: a station of a production line.
#
# It creates key records, claims and states, once each: there is no update and no
# delete. It confirms a record through subkeys, which names what is stored and
# gives no value. It cannot read a key, not even one that it wrote, and it cannot
# list units.

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

# Its own journal heads.
path "{{mount}}/data/checkpoints/{{station}}/+/+" {
  capabilities = ["create", "read"]
}

path "{{mount}}/metadata/checkpoints/{{station}}/" {
  capabilities = ["list"]
}

path "{{mount}}/metadata/checkpoints/{{station}}/+/" {
  capabilities = ["list"]
}

path "{{mount}}/data/store" {
  capabilities = ["read"]
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
