// Package people says who may do what at a station: the file of people, their
// logins, sessions and rights. It owns no key of a board and knows no HTTP.
//
// # Roles
//
// An operator works, by badge or PIN. An engineer decides and an auditor reads,
// both by password. [Authorize] holds the whole table; what it does not allow is
// denied.
//
// # The file
//
// people.yaml holds names, roles and hashes, never a secret itself. It must be
// readable by its owner alone. Hashes are argon2id (RFC 9106) in the PHC string
// format with their parameters, at present 19 MiB, two passes, one lane (OWASP
// Password Storage Cheat Sheet), so that a Raspberry Pi can check them; a weaker
// one than OWASP's list is refused. Writers lock the file and replace it whole
// ([Init], [Add], [Remove], [SetSecret]): who reads it sees the old or the new.
//
// PINs and passwords have a salt each. A badge carries no name, so all badges of
// a file share one salt: one computation finds its person, however many there
// are. The price is that somebody who has stolen the file can try a guessed
// badge number on all people at once, and that badge numbers are short. A badge
// is something one has, not something one knows: whoever can read the file can
// print badges after some hours of guessing, as whoever stands beside a badge
// reader can copy one. It is good for an operator's rights, and so it opens
// nothing else.
//
// # Logging in
//
// A login with an unknown name takes as long, counts as much and is answered the
// same as one with a wrong secret. Failures make the next attempt wait, per
// person and per source address, doubling each time up to five minutes, and are
// forgiven one by one (a person's in ten minutes each, an address's in two). So
// one PIN stands about 300 guesses a day, of a million; and a person can be kept
// from logging in by somebody who can reach the station and tries hard, for five
// minutes at a time, while sessions go on. An attempt is
// counted when it begins, so that many at once get no further than one by one.
// All of this is in memory: a restart forgets it. At most two hashes are
// computed at once, and few may wait for them: logging in cannot exhaust the
// memory.
//
// # Sessions
//
// A token is 256 random bits; the station remembers only its SHA-256. A session
// ends by logout, when it was idle, at its absolute age, and when the file no
// longer says the same of its person. The clock is one that no setting of the
// time moves and that runs on in suspend, so neither lengthens a session. The
// file is looked at again on use. While it is broken nobody can log in, whoever
// is in keeps working, and [Book.Err] says why.
package people
