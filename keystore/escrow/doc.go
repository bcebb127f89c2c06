// Package escrow owns the sealed escrow: a keystore.Store that wraps another one
// and takes records for it while it cannot be reached, for lines that must not
// stop. It is off unless somebody makes one.
//
// # What it keeps
//
// A folder, the spool, with one file per record: a header in clear, and the
// record encrypted to offline age recipients. The station cannot open what it
// wrote. States of such a record are files beside it. Every file is written
// under another name first, synced, linked to its place and never changed; the
// folder is synced before anything is acknowledged. Nothing is deleted: what the
// inner store has taken over is moved into the folder drained.
//
// # What it promises
//
// The inner store comes first, always. A record goes to the spool only when the
// inner store is away (keystore.ErrUnavailable) or could not tell what became of
// the record (keystore.ErrUnknownOutcome), and only within the bounds of number
// and age. Beyond them the answer is keystore.ErrUnavailable.
//
// One key per unit, as far as this spool and, when it can be asked, the inner
// store know. A unit with a record in the spool never gets a second key. What
// cannot be known during an outage is whether another station has made a key for
// the same unit: docs/threat-model.md says what that weakens. Before the burn of
// an escrowed key the inner store is asked once more, and claims the unit if it
// is back.
//
// It shows. Receipts begin with "escrow:" and carry a warning, and so does Info
// while the inner store is away.
//
// # How it empties
//
// Sync, which the station calls, uploads the sealed records and their states to
// the inner store if that has a place for them (Depot), claims the units there and
// tells which of their keys may be in silicon (Teller), and moves what the custodian
// has taken over. Drain, which the custodian calls
// with the offline identity, opens each record, stores it in the inner store with
// its states, confirms it, and only then marks it. Both may be cut off at any
// point and repeated.
package escrow
