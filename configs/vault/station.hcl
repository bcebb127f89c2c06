# provisiond: a station of a production line.
#
# It creates key records, claims and states, once each: there is no update and no
# delete. It confirms a record through subkeys, which names what is stored and
# gives no value. It cannot read a key, not even one that it wrote, and it cannot
# list units.

path "provisiond/data/units/+/+/+" {
  capabilities = ["create"]
}

path "provisiond/subkeys/units/+/+/+" {
  capabilities = ["read"]
}

path "provisiond/data/units/+/+/claim/+" {
  capabilities = ["create", "read"]
}

path "provisiond/data/units/+/+/+/state/+" {
  capabilities = ["create", "read"]
}

# Its own journal heads.
path "provisiond/data/checkpoints/line1/+/+" {
  capabilities = ["create", "read"]
}

path "provisiond/metadata/checkpoints/line1/" {
  capabilities = ["list"]
}

path "provisiond/metadata/checkpoints/line1/+/" {
  capabilities = ["list"]
}

path "provisiond/data/store" {
  capabilities = ["read"]
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
