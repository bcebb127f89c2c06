// Package pkcs11test owns tokens for tests: it makes them with SoftHSM, a PKCS #11
// module in software, and promises that with CI set no test skips for lack of it.
package pkcs11test
