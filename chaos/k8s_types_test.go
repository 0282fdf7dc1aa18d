package chaos

// What the manifests of deploy/k8s may say: the fields that are used, of all kinds.

type k8sObject struct {
	APIVersion, Kind             string
	Metadata                     k8sMeta
	AutomountServiceAccountToken *bool
	Spec                         k8sSpec
}

type k8sMeta struct {
	Name                string
	Labels, Annotations map[string]string
}

// k8sSpec has the fields of all the kinds that are used.
type k8sSpec struct {
	Replicas, MinAvailable, BackoffLimit, TTLSecondsAfterFinished int
	Strategy                                                      struct {
		RollingUpdate struct{ MaxUnavailable, MaxSurge int }
	}
	Selector, PodSelector k8sSelector
	Template              struct {
		Metadata k8sMeta
		Spec     k8sPod
	}
	Ports           []k8sPort
	PolicyTypes     []string
	Ingress, Egress []struct {
		From, To []struct{ PodSelector, NamespaceSelector *k8sSelector }
		Ports    []k8sPort
	}
}

type k8sSelector struct {
	App              string // a Service's selector is the labels themselves
	MatchLabels      map[string]string
	MatchExpressions []struct {
		Key, Operator string
		Values        []string
	}
}

// apps are the values of the label app that a selector takes.
func (s k8sSelector) apps() (apps []string) {
	for _, app := range []string{s.App, s.MatchLabels["app"]} {
		if app != "" {
			apps = append(apps, app)
		}
	}
	for _, e := range s.MatchExpressions {
		if e.Key == "app" && e.Operator == "In" {
			apps = append(apps, e.Values...)
		}
	}
	return apps
}

type k8sPort struct {
	Name, Protocol, TargetPort string
	Port, ContainerPort        int
}

type k8sPod struct {
	ServiceAccountName, RestartPolicy string
	AutomountServiceAccountToken      *bool
	TerminationGracePeriodSeconds     int
	SecurityContext                   struct {
		RunAsNonRoot   bool
		SeccompProfile struct{ Type string }
	}
	TopologySpreadConstraints []struct {
		MaxSkew                        int
		TopologyKey, WhenUnsatisfiable string
		LabelSelector                  k8sSelector
	}
	Containers []k8sContainer
	Volumes    []struct {
		Name   string
		Secret struct{ SecretName string }
	}
}

type k8sContainer struct {
	Name, Image string
	Args        []string
	Env         []struct {
		Name, Value string
		ValueFrom   struct{ SecretKeyRef struct{ Name, Key string } }
	}
	Ports                                       []k8sPort
	StartupProbe, LivenessProbe, ReadinessProbe k8sProbe
	Lifecycle                                   struct {
		PreStop struct{ Sleep struct{ Seconds int } }
	}
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext struct {
		AllowPrivilegeEscalation *bool
		ReadOnlyRootFilesystem   bool
		Capabilities             struct{ Drop []string }
	}
	VolumeMounts []struct {
		Name, MountPath string
		ReadOnly        bool
	}
}

type k8sProbe struct {
	HTTPGet                                         struct{ Path, Port string }
	PeriodSeconds, TimeoutSeconds, FailureThreshold int
}
