// Package release owns what an OTA server gives to whom: the images, sealed at
// rest, and the state that decides which unit is offered which of them.
//
// # Images
//
// A release is an application image in plaintext under a name. On disk it lies
// sealed to the age recipient of the store, one file per release; adding one
// needs no secret. To serve it, the store opens it into memory with the identity
// and compares it with the hash that was noted when it was added. What is open at
// the same time is bounded; the memory of an image that goes is overwritten.
//
// # Who is offered what
//
// A unit belongs to a channel, "stable" if nobody said otherwise. A channel has a
// list of rollouts in the order in which they were begun, each with a share of
// units. A unit is in the share when its number for that release, a hash of unit
// and release name, is below it: so a larger share has all units of the smaller
// one, and another release begins with other units. A unit is offered the last
// rollout of the list that is not halted, is for its chip and recipe, and has it
// in its share; never one that stands before what the unit runs, and never one
// from which it rolled back. A pin takes the place of all that, the halt excepted.
//
// State is one bbolt file; every change is on disk when the call returns. One
// process has it open at a time.
package release
