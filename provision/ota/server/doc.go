// Package server owns the HTTP service that gives units their updates: the
// ciphertext of a release for one unit and one slot, made while it is sent, and
// its signed manifest. docs/ota.md has the API.
//
// # What it promises
//
// A unit gets only what is its own. It proves itself by a token, of which the key
// record has a hash, or by a client certificate; a wrong token and an unknown
// unit have one answer. No key is read for somebody who did not prove himself.
//
// Keys stand in memory sealed (internal/secret), for a bounded time and count,
// and are wiped when they go. Every use of a key is a line in the audit file
// before the first byte leaves; when the line cannot be written, nothing leaves.
//
// While the keystore is away, units whose key is in memory are served, others are
// told to come again. What the keystore does not know is remembered for a while,
// so that a flood of made-up units does not become a flood of lookups.
//
// Bytes are encrypted when the client's connection has room for them, so a client
// that does not read holds no buffer of this process. Ranges, conditions and the
// rest of RFC 9110 are http.ServeContent's, but for what rangesAsRFC sets right.
package server
