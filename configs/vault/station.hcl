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

# Sealed records of its own escrow: it creates them and sees their hashes. What is
# in them is sealed to the custodian.
path "{{mount}}/data/escrow/{{station}}/+/+" {
  capabilities = ["create"]
}

path "{{mount}}/data/escrow/{{station}}/+/+/state/+" {
  capabilities = ["create"]
}

path "{{mount}}/subkeys/escrow/{{station}}/+/+" {
  capabilities = ["read"]
}

path "{{mount}}/subkeys/escrow/{{station}}/+/+/state/+" {
  capabilities = ["read"]
}

path "{{mount}}/metadata/escrow/{{station}}/*" {
  capabilities = ["read", "list"]
}

# Its own key in the transit engine, which signs the checkpoints of its journal.
path "transit/sign/{{mount_name}}-station-{{station}}" {
  capabilities = ["update"]
}

path "transit/keys/{{mount_name}}-station-{{station}}" {
  capabilities = ["read"]
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
