// Package station owns the slots of a production line: which port each is bound
// to, one worker for each, what may start a unit, the lot that it belongs to,
// when a slot is set aside, and the view of all this that screens show.
//
// What it promises:
//
//   - One slot's crash, hung board or pulled cable touches no other slot.
//   - Nothing that looks at the station makes a worker wait.
//   - No unit is begun that its lot, its keystore or its journal cannot take.
//   - Every action of a person is in the journal, with the person, before it
//     works.
package station
