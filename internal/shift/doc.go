// Package shift owns the test of a whole shift: a real station daemon with many
// slots, a real Vault, a farm of simulated boards, and an operator who swaps them
// while things go wrong.
package shift
