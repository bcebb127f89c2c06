// Package vault owns the keystore of production: key records in HashiCorp
// Vault's KV v2, written with a role that can create and cannot read keys back.
//
// # Paths
//
// Under one mount, all of them written once (cas=0) and never again:
//
//	store                                 what this store is: its id, whether for simulated units
//	units/<bb>/<mac>/claim/<n>            which key is the unit's n-th: its fingerprint, who and when
//	units/<bb>/<mac>/<fingerprint>        the key record
//	units/<bb>/<mac>/<fp>/state/<n>       its n-th state
//	checkpoints/<station>/<day>/<size>    signed journal heads of a station
//
// <bb> is the last byte of the MAC: Vault answers LIST with a whole folder in
// one reply, and the last byte spreads a lot evenly. Nothing is updated, so no
// role needs `update`, and KV's limit of versions pushes nothing out. Nothing is
// deleted by us. MAC and fingerprint are typed values, so a path cannot leave
// its place.
//
// # What can be seen without the key
//
// A record's data has the record's fields and one more, "clear", an object whose
// *names* are "chip=esp32c3", "job=…", "sha256=…" and so on. Vault's subkeys
// endpoint gives the names of an entry and never its values. So a station or an
// auditor, who may read subkeys and not data, sees everything of a record but
// the key and the partition table, with a digest over all of it: enough to
// confirm custody and to tell an identical record from another one.
//
// # At most one key of a unit is not superseded
//
// Vault has no transaction over two paths, and two stations that race write two
// different fingerprints, hence two different paths. What decides is the claim:
//
//  1. claim/<n> is one path for everybody, and cas=0 lets one writer win. It
//     names one fingerprint for ever.
//  2. claim/<n+1> is written only by who has read that the key of claim/<n> is
//     superseded. Superseded is final (keystore.CheckTransition), so this stays
//     true, also if the read came from a node that lags.
//  3. A record is written only after its claim. So of the keys that claims name,
//     at every moment at most the last one is not superseded, and a record that
//     no claim names does not come from this package (Check reports it).
//  4. state/<n> is one path as well. "may be in silicon" and "superseded" compete
//     for the same number, and one of them wins. A key that was given up by
//     somebody else is never burned, and one that may be in silicon is never
//     given up, whatever was read before.
//
// Reserve writes the claim ahead of the record, for the time while the flash is
// written, and reads it back; nothing of the above changes by it. Confirm wants
// record and claim, of which the claim may be the one that Reserve read; AddState
// wants both, read at that moment, before it allows the burn.
//
// A crash between two writes leaves a prefix of: claim, record, states. A claim
// without a record is shown by List as a stored key whose Receipt is zero. It
// blocks the unit until somebody supersedes it, which the engine does for its own
// job when no burn was begun. Should the record still arrive (a request that was
// held up), it is superseded at birth. A state that arrives late meets rule 4.
//
// # Unknown outcomes
//
// A time-out, a cut connection or most 5xx answers do not tell whether a write
// took place, and 403 may mean "exists already" for a token that may only
// create. The package never repeats a write blindly. It looks: the write is
// stored by us, stored by another, or not there; if it is not there it is sent
// again with cas=0, since a look alone cannot rule out that the first request is
// still on its way. When the time (Config.Patience) ends without an answer, the
// error is keystore.ErrUnknownOutcome; when every attempt was refused for sure,
// keystore.ErrUnavailable.
//
// # Clusters
//
// Standby nodes of the community edition answer nothing themselves: they forward
// to the active node, or fail. Performance standbys of the Enterprise edition do
// read; there every request carries the state of the last write (X-Vault-Index),
// and a node that lags answers 412, which is asked again elsewhere. (The header
// X-Vault-Inconsistent: forward-active-node is no help: a server whose
// configuration does not allow it refuses every request with 400.) A leader that
// was cut off and does not know it yet may answer reads for a moment from an
// older state. That is why all conclusions rest on what only ever becomes true:
// a record that exists, a state that was written, an answer to cas=0. An old
// "not there" leads to a write, which the cut-off leader cannot commit. Where
// "not there" itself is the answer (Confirm, Load, AddState, Check, a conflict
// with a key that no state gave up), it is believed only from a server that has
// just written for us: see settled. List is not fenced; see there.
//
// One thing no client can see: a node of Vault 1.21.2 that is given its unseal
// key again while it still joins the cluster runs its standby loop twice, stays
// active when it loses the lead, and then answers from its cache, to cas=0 as
// well. Its log says "entering standby mode" twice. Confirm does not take such a
// node's "not there" for custody; but two stations that race for one unit could
// both win there. docs/keystore-vault.md tells operators.
package vault
