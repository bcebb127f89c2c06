// Package vault owns the text of the Vault policies, one file per role. They
// stand here, where operators look for them, and nowhere else: keystore/vault
// fills in their places, {{mount}} and the like, and `provisiond keystore policy
// ROLE` prints the result, which is what Vault takes.
package vault

import "embed"

// Policies has ROLE.hcl for every role.
//
//go:embed *.hcl
var Policies embed.FS
