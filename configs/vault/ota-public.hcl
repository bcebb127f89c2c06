# provisiond: an OTA backend that sends no flash ciphertext: plaintext over TLS, or
# esp_encrypted_img files for units whose record has an ECIES public key. It sees
# what is stored beside the keys (through subkeys, which give names and never
# values), and reads no key. It cannot write and cannot list.

path "{{mount}}/subkeys/units/+/+/+" {
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
