package cluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Users with a token of their own, so that the audit log tells them apart. All
// are cluster administrators: whoever can read the directory owns the cluster.
const (
	UserAdmin      = "admin"
	UserController = "system:kube-controller-manager"
	UserScheduler  = "system:kube-scheduler"
	UserNode       = "devcluster:node"
)

var users = []string{UserAdmin, UserController, UserScheduler, UserNode}

// Files of the pki folder.
const (
	FileCA         = "ca.crt"
	FileCert       = "components.crt"
	FileKey        = "components.key"
	FileTokens     = "tokens.csv"
	FileServiceKey = "service-accounts.key"
	FileAudit      = "audit-policy.yaml"
)

// WriteCredentials creates keys and tokens once, and the kubeconfigs every time.
func (l Layout) WriteCredentials(a Addresses) error {
	if _, err := os.Stat(l.PKI(FileTokens)); errors.Is(err, os.ErrNotExist) {
		if err := l.writeKeys(a); err != nil {
			return fmt.Errorf("create the cluster's keys: %w", err)
		}
	}
	tokens, err := os.ReadFile(l.PKI(FileTokens))
	if err != nil {
		return fmt.Errorf("read the cluster's tokens: %w", err)
	}
	ca, err := os.ReadFile(l.PKI(FileCA))
	if err != nil {
		return fmt.Errorf("read the cluster's certificate: %w", err)
	}
	for line := range strings.Lines(string(tokens)) {
		token, rest, _ := strings.Cut(line, ",")
		user, _, _ := strings.Cut(rest, ",")
		path := l.UserKubeconfig(user)
		if user == UserAdmin {
			path = l.Kubeconfig()
		}
		if err := writeKubeconfig(path, a, ca, user, token); err != nil {
			return err
		}
	}
	return WriteFile(l.PKI(FileAudit), []byte(auditPolicy), 0o600)
}

func writeKubeconfig(path string, a Addresses, ca []byte, user, token string) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["devcluster"] = &clientcmdapi.Cluster{Server: "https://" + a.Endpoint(PortAPI), CertificateAuthorityData: ca}
	c.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["devcluster"] = &clientcmdapi.Context{Cluster: "devcluster", AuthInfo: user}
	c.CurrentContext = "devcluster"
	data, err := clientcmd.Write(*c)
	if err != nil {
		return err
	}
	// A context or namespace that the user chose by `kubectl config` stays, as long
	// as the file still reaches this cluster.
	if old, err := clientcmd.LoadFromFile(path); err == nil {
		was, is := old.Clusters["devcluster"], old.AuthInfos[user]
		if was != nil && is != nil && was.Server == c.Clusters["devcluster"].Server && is.Token == token && bytes.Equal(was.CertificateAuthorityData, ca) {
			return nil
		}
	}
	return WriteFile(path, data, 0o600)
}

func (l Layout) writeKeys(a Addresses) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devcluster-ca"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IsCA: true, BasicConstraintsValid: true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	// One pair for all components, as server and as client of each other.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "devcluster-components"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(a.Infra()), net.ParseIP(a.KubernetesService())},
	}
	certDER, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	serviceKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	for name, k := range map[string]*ecdsa.PrivateKey{FileKey: key, FileServiceKey: serviceKey} {
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return err
		}
		if err := writePEM(l.PKI(name), "EC PRIVATE KEY", der); err != nil {
			return err
		}
	}
	if err := writePEM(l.PKI(FileCA), "CERTIFICATE", caDER); err != nil {
		return err
	}
	if err := writePEM(l.PKI(FileCert), "CERTIFICATE", certDER); err != nil {
		return err
	}
	// Last: its presence says that all keys are there.
	var tokens strings.Builder
	for i, user := range users {
		fmt.Fprintf(&tokens, "%s,%s,%d,system:masters\n", randomToken(), user, i+1)
	}
	return WriteFile(l.PKI(FileTokens), []byte(tokens.String()), 0o600)
}

func randomToken() string {
	raw := make([]byte, 24)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

func writePEM(path, kind string, der []byte) error {
	return WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// auditPolicy keeps who did what for every request, and what was written for the
// project's own kinds: enough to count writes and to prove who changed a spec.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  verbs: [create, update, patch, delete, deletecollection]
  resources: [{group: llmops.dev}]
- level: Metadata
`
