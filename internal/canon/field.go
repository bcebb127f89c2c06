package canon

import (
	"strconv"
	"time"
)

// The fields of an object that is written member by member, behind its first one.

// AppendStringField appends a comma and a member with a string.
func AppendStringField(dst []byte, name, v string) []byte {
	return AppendString(appendName(dst, name), v)
}

// AppendUintField appends a comma and a member with a number of at most MaxInt.
func AppendUintField(dst []byte, name string, v uint64) []byte {
	return strconv.AppendUint(appendName(dst, name), v, 10)
}

// AppendBoolField appends a comma and a member with true or false.
func AppendBoolField(dst []byte, name string, v bool) []byte {
	return strconv.AppendBool(appendName(dst, name), v)
}

// AppendTimeField appends a comma and a member with a time in UTC.
func AppendTimeField(dst []byte, name string, t time.Time) []byte {
	return AppendTime(appendName(dst, name), t)
}

// appendName begins a member. Names are the program's own and need no escape.
func appendName(dst []byte, name string) []byte {
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	return append(dst, `":`...)
}
