// Runs in a box of the image `java`: what Java trusts there, and what each of its clients says of a server.
import java.io.FileInputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;

class Trusting {
    interface Work { Object run() throws Exception; }

    static void say(String name, Work work) {
        String said;
        try {
            said = String.valueOf(work.run());
        } catch (Exception error) {
            said = error.toString();
        }
        System.out.println(name + "\t" + said.replace("\n", " "));
    }

    static X509TrustManager trusted() throws Exception {
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init((KeyStore) null);
        return (X509TrustManager) factory.getTrustManagers()[0];
    }

    static int opened(char[] password) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        try (FileInputStream file = new FileInputStream(System.getProperty("java.home") + "/lib/security/cacerts")) {
            store.load(file, password);
        }
        return store.size();
    }

    public static void main(String[] urls) {
        say("trusted", () -> trusted().getAcceptedIssuers().length);
        say("ours", () -> java.util.Arrays.stream(trusted().getAcceptedIssuers())
            .filter(each -> each.getSubjectX500Principal().getName().contains("fumehood task")).count());
        say("with password", () -> opened("changeit".toCharArray()));
        say("without", () -> opened(null));
        say("user", () -> System.getProperty("user.name"));
        for (int at = 0; at < urls.length; at++) {
            URI uri = URI.create(urls[at]);
            say("HttpsURLConnection " + at, () -> ((HttpURLConnection) uri.toURL().openConnection()).getResponseCode());
            say("HttpClient " + at, () -> HttpClient.newHttpClient()
                .send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
